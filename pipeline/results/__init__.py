"""Records of evaluations, and the tables, statistics and model cards made from them."""
