"""Find datasets whose images are in the order of their classes, such as folders of images."""

from dent.data.dataset import ImageDataset


def cheap_labels(data: ImageDataset) -> list[int] | None:
    """Return all labels of a dataset, or None if it would have to read every image for them."""
    if type(data).labels_of is ImageDataset.labels_of:
        return None
    return data.labels_of(range(len(data)))


def is_in_class_order(data: ImageDataset) -> bool:
    """Return whether the first images of a dataset are of the first class, and so on.

    False for a dataset that would have to read every image for this.
    """
    labels = cheap_labels(data)
    return labels is not None and len(set(labels)) > 1 and labels == sorted(labels)
