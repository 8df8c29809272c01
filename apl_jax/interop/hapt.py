"""HAPT (SBHAR) from the folder that UCI distributes, as a data folder: annotations.json and signals_50hz.npz.

Of "HAPT Data Set" these files are read: ``activity_labels.txt`` (number, name), ``RawData/labels.txt`` (experiment,
user, activity, first and last sample, counted from 1), ``RawData/acc_expXX_userYY.txt`` and ``gyro_expXX_userYY.txt``
(x, y, z per line; g and rad/s at 50 Hz), and ``Train/subject_id_train.txt`` and ``Test/subject_id_test.txt``, whose
users make up the official split. The ready-made features in the same folder are not looked at.

The data may be used, not sold, with citation (Reyes-Ortiz et al., Neurocomputing 2015), so it comes from the user.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from apl_jax.data.files import DataError, read_lines, refusal, write_bytes, write_json

RATE = 50.0  # samples per second
_SUBSETS = {"training": "Train/subject_id_train.txt", "test": "Test/subject_id_test.txt"}
_AGAIN = "download and unpack the data set again"
_LARGEST = 6e4  # float16 ends soon after; sensors stay below 50


def prepare_hapt(source: Path, out: Path) -> int:
    """Writes the recordings and annotations of UCI's folder ``source`` to ``out``; returns how many recordings it has.

    Signals are float16 ``[samples, 6]``, acceleration before rotation, like the copy behind the numbers in README: up
    to 2, within a thousandth of what the files say. Raises :class:`~apl_jax.data.files.DataError` for a file that is
    missing or not what it should be.
    """
    names = {number: name.lower() for number, name in _named_activities(source / "activity_labels.txt")}
    places = {number: place for place, number in enumerate(sorted(names))}
    subset_of = _official_split(source)
    rows = _table(source / "RawData" / "labels.txt", 5, "experiment, user, activity, first and last sample").astype(int)
    signals: dict[str, np.ndarray] = {}
    database: dict[str, dict] = {}
    for experiment, user in sorted({(int(row[0]), int(row[1])) for row in rows}):
        video = f"exp{experiment:02d}_user{user:02d}"
        signals[video] = _read_signal(source / "RawData", video)
        if user not in subset_of:
            found = f"user {user} in neither list"
            raise refusal(str(source / _SUBSETS["training"]), found, "every user in one of the two", _AGAIN)
        annotations = []
        for _, _, activity, first, last in rows[(rows[:, 0] == experiment) & (rows[:, 1] == user)].tolist():
            if activity not in names or not 1 <= first <= last <= len(signals[video]):
                found = f"activity {activity} from sample {first} to {last}"
                expected = f"one of {len(names)} activities within {len(signals[video])} samples"
                raise refusal(f"{source / 'RawData' / 'labels.txt'}: {video}", found, expected, _AGAIN)
            segment = [(first - 1) / RATE, last / RATE]
            annotations.append({"segment": segment, "label": names[activity], "label_id": places[activity]})
        database[video] = {
            "subset": subset_of[user], "duration": len(signals[video]) / RATE, "fps": RATE, "subject": user,
            "annotations": annotations,
        }  # fmt: skip
    archive = io.BytesIO()
    np.savez_compressed(archive, **signals)  # pyright: ignore[reportArgumentType]  # names are none of its own
    write_bytes(out / "signals_50hz.npz", archive.getvalue())
    write_json(out / "annotations.json", {"version": "HAPT 2.1", "database": database})
    return len(signals)


def _lines(path: Path, meaning: str) -> list[str]:
    """The lines of one of the folder's files."""
    if not path.exists():
        remedy = "`source=<the folder 'HAPT Data Set' as it was unpacked>`"
        raise refusal(str(path), "no such file", meaning, remedy)
    return read_lines(path, meaning)


def _table(path: Path, columns: int, meaning: str) -> np.ndarray:
    """A text file of finite numbers, ``[lines, columns]``."""
    try:
        values = np.loadtxt(_lines(path, f"a table of {meaning}"), ndmin=2)
    except DataError:
        raise
    except ValueError as error:
        raise refusal(str(path), f"an unreadable table ({error})", meaning, _AGAIN) from None
    if values.shape[1] != columns or not len(values) or not np.isfinite(values).all():
        raise refusal(str(path), f"a table {list(values.shape)}", f"finite numbers: {meaning}", _AGAIN)
    return values


def _named_activities(path: Path) -> list[tuple[int, str]]:
    lines = [line.split() for line in _lines(path, "a number and a name on each line") if line.strip()]
    if not lines or any(len(line) != 2 or not line[0].isdigit() for line in lines):
        raise refusal(str(path), "other lines", "a number and a name on each line", _AGAIN)
    return [(int(number), name) for number, name in lines]


def _official_split(source: Path) -> dict[int, str]:
    """The subset of every user."""
    found: dict[int, str] = {}
    for subset, file in _SUBSETS.items():
        for user in np.unique(_table(source / file, 1, "user of every window").astype(int)).tolist():
            if user in found:
                raise refusal(str(source / file), f"user {user}, who is in {found[user]} too", "users apart", _AGAIN)
            found[user] = subset
    return found


def _read_signal(folder: Path, video: str) -> np.ndarray:
    """Both sensors of a recording side by side: ``[samples, 6]`` float16."""
    sensors = [_table(folder / f"{sensor}_{video}.txt", 3, "x, y, z on each line") for sensor in ("acc", "gyro")]
    lengths = [len(sensor) for sensor in sensors]
    signal = np.concatenate([sensor[: min(lengths)] for sensor in sensors], axis=1)
    if abs(lengths[0] - lengths[1]) > 1 or np.abs(signal).max() > _LARGEST:
        found = f"{lengths[0]} and {lengths[1]} samples, up to {np.abs(signal).max():g}"
        raise refusal(f"{folder}: {video}", found, "sensors of equal length, in g and rad/s", _AGAIN)
    return signal.astype(np.float16)
