"""The plug-in's detector, method and selection rule on the embedded data; see plugin.py."""

from apl_jax import default_config


def get_config():
    config = default_config(detector="conv", method="steady", selection=("surest_share",))
    learning = config.learning
    learning.rounds = 2
    learning.pretrain.unlabelled_batch = 8
    learning.pretext.partitions = learning.teacher.contrast.partitions = 32
    for stage in (learning.supervised, learning.self_train):
        stage.labelled_batch = 4
    learning.self_train.unlabelled_batch = 4
    for stage in (learning.pretrain, learning.supervised, learning.self_train):
        stage.steps = 200
        stage.optimizer.learning_rate = 1e-3
    return config
