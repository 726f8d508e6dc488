//! Run unmodified Linux programs with every system call in your own hands.
