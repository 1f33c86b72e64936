"""Does to the command what a bad day does, and writes down what became of it.

    python -m benchmarks.faults --out results/faults.csv             # 100 kills, 40 signals, 40 disks, 700 inputs
    python -m benchmarks.faults --out rows.csv --only kills signals --count 10

`kills` ends a fit by SIGKILL at a seeded random moment, resumes it and compares the end with the uninterrupted run, bit
for bit. `signals` sends SIGINT or SIGTERM to one process, or to the group, one rank, the launcher of several. `disks`
takes the disk away: full, read-only, denied, slow, gone. `fuzz` hands over seeded nonsense: configurations, words,
checkpoints, pictures, masks, tables.

Every try is the command itself in a forked process with a session of its own: what takes long, importing, is done once.
Rows that are there are not made again. Linux; disks that are full or read-only are mounted, so these need root.
"""
