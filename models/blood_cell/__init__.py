"""Eight kinds of cell in smears of peripheral blood."""
