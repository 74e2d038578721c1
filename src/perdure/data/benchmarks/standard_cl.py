"""The Standard CL benchmark: four text classification tasks in three published orders."""

ORDERS = {
    "standard_cl_1": ("dbpedia", "amazon", "yahoo", "agnews"),
    "standard_cl_2": ("dbpedia", "amazon", "agnews", "yahoo"),
    "standard_cl_3": ("yahoo", "amazon", "agnews", "dbpedia"),
}
