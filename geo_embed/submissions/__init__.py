"""Submissions, wherever they came from: `validate`, `note_submission`, `submission_log`, `send_submission`."""
