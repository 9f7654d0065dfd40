"""Files to batches: sources of labelled examples, the order they are shown in, and loaders.

`DATASETS` maps the names used in configurations to classes of sources.
"""

from common.registry import Registry

DATASETS = Registry(
    {
        "openmoji": "data.openmoji:OpenMoji",
        "image_folder": "data.image_folder:ImageFolder",
        "image_list": "data.image_list:ImageList",
        "webdataset": "data.webdataset_shards:WebDataset",
        "parquet": "data.parquet_images:ParquetImages",
        "hub": "data.parquet_images:HubImages",
        "tokens": "data.token_memmap:TokenMemmap",
    },
    base="data.source:Source",
)
__getattr__ = DATASETS.class_named
