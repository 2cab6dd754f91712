"""What every test shares."""

import os

from hypothesis import settings

# Two torch threads that wait busily for each other take several times as long on a machine that does other things too.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# An example's time says more about the machine than about the code.
settings.register_profile("polyhead", deadline=None)
settings.load_profile("polyhead")
