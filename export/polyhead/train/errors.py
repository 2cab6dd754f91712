"""What can go wrong in training. Each text is one line that says what to do; `exit_code` is the command's.

TrainError            1    the training failed
├── UsageError        2    options that contradict each other or what is on disk
├── DataError         1    a data file that can't be read; names file, line and column
└── Interrupted     130    Ctrl-C or SIGTERM; the state is saved
"""


class TrainError(Exception):
    exit_code = 1


class UsageError(TrainError):
    exit_code = 2


class DataError(TrainError):
    pass


class Interrupted(TrainError):
    exit_code = 130
