"""`python -m keras_fa` is the command `keras-fa`, a little slower to start."""

from keras_fa_command import main

if __name__ == "__main__":
    main()
