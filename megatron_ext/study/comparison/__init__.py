"""Two arms, or two stages, side by side: what they are, what they read, how they trained, what was found."""
