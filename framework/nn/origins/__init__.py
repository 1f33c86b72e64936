"""K-Origins: trainable intensity origins, and the statistics they begin from."""
