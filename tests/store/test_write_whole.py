import pytest

from raysegment.errors import DiskFullError, OutputError
from raysegment.store.place import write_whole


def test_a_file_appears_with_the_end_of_the_block_and_its_folders_with_it(tmp_path):
    target = tmp_path / "a" / "b" / "mask.tif"
    with write_whole(target) as temporary:
        temporary.write_bytes(b"new")
        assert not target.exists()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [target]
    assert target.read_bytes() == b"new"


def test_a_failed_write_leaves_the_old_content_and_nothing_beside_it(tmp_path):
    target = tmp_path / "mask.tif"
    target.write_bytes(b"old")

    def write_half():
        with write_whole(target) as temporary:
            temporary.write_bytes(b"half")
            raise ValueError("no mask")

    with pytest.raises(ValueError, match="no mask"):
        write_half()
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_full_disk_is_told_as_such(tmp_path):
    with pytest.raises(DiskFullError), write_whole(tmp_path / "mask.tif"):
        raise OSError(28, "No space left on device")


def test_a_file_in_the_place_of_a_folder_is_told(tmp_path):
    (tmp_path / "folder").write_bytes(b"")
    with pytest.raises(OutputError, match=r"mask\.tif cannot be written: "), write_whole(tmp_path / "folder/mask.tif"):
        pass
