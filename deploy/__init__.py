"""Setup, images and what runs inside them."""
