"""Reads footage and photographs, and cuts training clips from them."""
