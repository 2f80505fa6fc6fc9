"""The stages of dvc.yaml, a file for each paragraph."""

import os

from pipeline.process import die_with_dvc

if "DVC_STAGE" in os.environ:  # DVC has started this process, which ends with it from here on
    die_with_dvc()
