"""The web page on the user's own machine: uploads, jobs and the page itself.

Only ``page`` and ``server`` need Gradio; what they show and do is in the other modules. Files are
decoded in child processes only, which run ``rbvsr-run``.
"""
