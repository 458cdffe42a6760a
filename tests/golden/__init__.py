"""Golden recordings: scores, outputs, files, settings and help texts of one release; later ones must give the same."""
