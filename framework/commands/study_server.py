"""The process that a study's cells are forked from: everything is imported in it, and it has a session of its own.

What a terminal or `timeout` sends to the study's group reaches neither it nor a cell that is just starting: the study
hands signals on by itself.
"""

import os

#: the study's process, in its environment
STUDY = "EXPLICIT_VISION_STUDY"
if os.environ.get(STUDY) == str(os.getppid()) and os.getpgrp() != os.getpid():
    os.setsid()

import framework.commands.study_cell  # noqa: E402, F401
