"""MA-SBIR: sketches and photos meet through the text of their class alone."""
