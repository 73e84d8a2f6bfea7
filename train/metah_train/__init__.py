"""Train METAH and the hashing methods it is compared with, and evaluate them."""

import os

# OpenMP reads this once, when torch is loaded. Threads that spin while they wait stop one another
# as soon as a second program wants the cores: measured on 2 cores, 2.6 s a step instead of 0.2 s.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
