"""Documents that samples begin are counted as a look at every sample does, at every place of the reading order."""

import pytest

from megatron_ext.datasets.begun import BegunDocuments
from megatron_ext.datasets.cursor import SourceCursor
from megatron_ext.datasets.documents import Documents
from tests.support.sources import write_source

# Long, short, empty and exactly row-long documents: 29 tokens, rows of 4.
DOCUMENTS = [[1] * 9, [2, 0], [], [3, 3, 3, 0], [4], [5] * 6, [], [], [6, 0], [7] * 5]


def _cursor(folder, *, length, window_samples):
    manifest = write_source(folder / "a", DOCUMENTS, block_documents=3)
    documents = Documents(str(folder / "a"), source="a", data_id=manifest.data_id)
    return SourceCursor(documents, seed=5, sequence_length=length, window_samples=window_samples)


@pytest.mark.parametrize(("length", "window_samples"), [(4, 3), (4, 4096), (1, 7), (40, 2), (29, 1)])
def test_the_count_at_every_place_is_that_of_all_samples_before(tmp_path, length, window_samples):
    cursor = _cursor(tmp_path, length=length, window_samples=window_samples)
    begun = BegunDocuments(cursor, with_row_starts=True)
    counted, seen = [0, 0, 0, 0, 0], set()
    for place in range(0, 4 * 29 + 2 * length, length):
        assert cursor.place == place
        assert begun.before(place) == tuple(counted)
        position = 0
        for span in cursor.locate(cursor.draw()):
            if span.start == 0 and position < length:
                counted[span.document in seen] += 1
                counted[2] += position == 0
                seen.add(span.document)
            position += span.length


def test_row_starts_are_not_looked_for_unasked(tmp_path):
    cursor = _cursor(tmp_path, length=4, window_samples=3)
    assert BegunDocuments(cursor, with_row_starts=False).before(32) == (7, 1, 0, 0, 0)
