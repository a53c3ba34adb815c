"""`jseg serve`: a page and an HTTP API that segment pictures.

work.py segments one picture after the other, in the main thread; app.py is the API (Flask); server.py takes the
requests (waitress); page.html, page.css and page.js are what a browser shows.
"""
