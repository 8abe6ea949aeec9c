"""Sequence models that mosaics are compared with on RegBench and MQAR (v1 figure 9). `models.registry` names them."""
