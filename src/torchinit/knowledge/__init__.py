"""Knowledge: what is known of layers: at which values they do nothing, and what follows them."""
