"""CIFAR-100 and its sources (Krizhevsky, 2009), with its 100 fine labels.

No SHA-256 of its decoded pixels is known. So the data is checked by torchvision's MD5
sums of the archive and of every file in it. For the same reason, torchvision's own files are kept
and read each time: decoded arrays could not be checked again, so none are stored.
"""

from typing import Final

from dent.data.spec import ArraySpec, SplitFacts
from dent.data.torchvision_folder import TorchvisionFolder
from dent.data.torchvision_source import TorchvisionSource

_FOLDER = TorchvisionFolder(dataset="CIFAR100", base="cifar-100-python")
_CLASSES = (
    "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus "
    "butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch "
    "crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo "
    "keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse "
    "mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy "
    "porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper "
    "snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television "
    "tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm"
)

CIFAR100: Final = ArraySpec(
    name="cifar100",
    classes=tuple(_CLASSES.split()),
    image_shape=(32, 32, 3),
    splits={
        "test": SplitFacts(count=10_000, pixels_sha256=None, labels_sha256=None),
        "train": SplitFacts(count=50_000, pixels_sha256=None, labels_sha256=None),
    },
    folder=_FOLDER,
    sources=(TorchvisionSource(_FOLDER, ("test", "train"), archive_bytes=169_001_437),),
    by_hand="download cifar-100-python.tar.gz on a machine with network access, and unpack it "
    "into {root}: {root}/cifar-100-python must have the files train, test and meta",
)
