"""Pictures and pages for people: overlays, legends, contact sheets, curves, the HTML page of a run. No Jittor in here."""
