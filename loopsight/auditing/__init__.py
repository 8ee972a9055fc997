"""The auditor behind `loopsight.audit`, a file an idea:

subject      the user's model, batch and targets as one checked value
exact        float64 arithmetic over weights of any dtype, without a copy of them
blindspots   what the readout cannot see, found token by token with no hint, and named
actions      the finite movements that decide
directions   visibility, activity, drive, deferred visibility and verdict of every direction
forecast     norms at further loops, and when a low-precision stream stops or overflows
losses       cross-entropy by loop and under clamps, with intervals
gauge        scaling symmetries of the parameters, and what optimisers do along them
advice       remedies, tried on the model as it is and ranked
run          all of it in order
report       the result; codec writes and reads it; wording says it in sentences; page draws it
    request      what the command line names, as a model and a batch
    command      the command line itself
"""
