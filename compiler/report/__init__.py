"""The result of a search as one self-contained HTML page.

page.py      the page, from page.html, page.css and page.js
tables.py    its tables
kernels.py   its section on kernels and the machine's limits
picture.py   the front as inline SVG
"""

from .page import render, write_page

__all__ = ["render", "write_page"]
