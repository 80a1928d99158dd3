"""What a finished or unfinished study says: numbers here, pages and tables of them in `study/page`."""
