"""Train METAH and the hashing methods it is compared with, and evaluate them."""
