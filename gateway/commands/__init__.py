"""Commands of the `lorikeet` program, a group per file. Heavy imports stay inside the functions that need them."""
