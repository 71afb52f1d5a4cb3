"""Views: they take events and draw them, and know no torch. `choose` picks one, and says why."""
