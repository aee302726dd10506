"""Write a checkpoint's network as an ONNX file, for runtimes other than this project's own: `saga-rl train
export-onnx`."""

from saga_rl.cli.train.export_onnx import main
from saga_rl.learn.script import run_script

if __name__ == "__main__":
    run_script(main)
