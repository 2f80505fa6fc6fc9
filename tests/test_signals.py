"""The request to stop, as a stage gets it."""

import os
import signal

from pipeline.process import SAVE_AND_STOP, signals_noted


def test_a_stage_notes_the_request_to_stop_although_what_started_it_has_blocked_signals_as_ray_does():
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SAVE_AND_STOP)
    try:
        with signals_noted() as stop:
            assert not stop()
            os.kill(os.getpid(), signal.SIGINT)
            assert stop()
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) >= set(SAVE_AND_STOP)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
