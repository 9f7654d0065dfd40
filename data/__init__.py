"""Files to batches: sources of labelled examples, the order they are shown in, and loaders."""

from data.image_folder import ImageFolder
from data.image_list import ImageList
from data.openmoji import OpenMoji
from data.parquet_images import HubImages, ParquetImages
from data.token_memmap import TokenMemmap
from data.webdataset_shards import WebDataset

DATASETS = {
    "openmoji": OpenMoji,
    "image_folder": ImageFolder,
    "image_list": ImageList,
    "webdataset": WebDataset,
    "parquet": ParquetImages,
    "hub": HubImages,
    "tokens": TokenMemmap,
}
