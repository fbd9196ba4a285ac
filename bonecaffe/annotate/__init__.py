"""Marking the seven points in a browser (paper II.1, figure 2).

`marking` keeps the table of points on disk. `pictures` prepares the radiographs. `server` answers the requests of the
page, which is in `page/`.
"""
