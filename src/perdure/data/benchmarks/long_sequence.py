"""The Long Sequence benchmark: fifteen text classification tasks in three published orders."""

ORDERS = {
    "long_sequence_1": (
        *("mnli", "cb", "wic", "copa", "qqp", "boolqa", "rte", "imdb"),
        *("yelp", "amazon", "sst-2", "dbpedia", "agnews", "multirc", "yahoo"),
    ),
    "long_sequence_2": (
        *("multirc", "boolqa", "wic", "mnli", "cb", "copa", "qqp", "rte"),
        *("imdb", "sst-2", "dbpedia", "agnews", "yelp", "amazon", "yahoo"),
    ),
    "long_sequence_3": (
        *("yelp", "amazon", "mnli", "cb", "copa", "qqp", "rte", "imdb"),
        *("sst-2", "dbpedia", "agnews", "yahoo", "multirc", "boolqa", "wic"),
    ),
}
