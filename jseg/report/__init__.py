"""Pages for people: curves, heat maps, the HTML page of a run. No Jittor in here."""
