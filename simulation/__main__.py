"""`python -m simulation`: see simulation.commands."""

from simulation.commands import main

if __name__ == "__main__":
    main(prog_name="python -m simulation")
