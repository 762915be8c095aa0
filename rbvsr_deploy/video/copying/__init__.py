"""Carries audio, subtitles, data and attachments from the source into the output."""
