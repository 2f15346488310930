"""The operators' page: the files that a browser loads, and reports that are one file.

Nothing here serves HTTP: `cema.page.assets` says what the files are, and under which headers they belong.
"""
