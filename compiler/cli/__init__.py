"""The command line: `bitsmith VERB ...`. Each verb parses, calls the function of the same name in the
pipeline, and prints.

Exit codes: 0 done; 2 the command line is wrong; 3 to 10 as compiler/errors.py says; 70 a fault of bitsmith
itself; 130 interrupted; 141 the reader of the output went away; 143 terminated. Until a verb runs only typer
and rich are imported, so --help is quick.

app.py       the program: verbs, errors, exit codes
verbs.py     the verbs
options.py   the options that verbs share
output.py    stdout, stderr, JSON, progress
tables.py    results as tables
"""

from .app import app, main

__all__ = ["app", "main"]
