"""Run the console command as `python -m metaguide`."""

from metaguide.cli import main

if __name__ == "__main__":
    main()
