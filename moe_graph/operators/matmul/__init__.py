"""Matrix products: grouped, transposed, quantised."""
