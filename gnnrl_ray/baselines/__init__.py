"""Methods to compare with; nothing but the search knows of them."""
