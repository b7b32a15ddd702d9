"""ResNet-18 on a random n-class subset of Tiny-ImageNet.

Source: Robertson and Koyejo (2024), section 6 and appendix A: table 2. The validation
set serves as test set.
Command: python trainers/train.py --config=configs/tiny_imagenet_resnet18.py \
             --workdir=DIR --config.rule=sign_fa
Expected: the paper's test accuracy at 10 classes is 49.6% (fa), 51.6% (ada_fa), 64.9%
    (sign_fa), 67.5% (backprop) after 50 epochs. Run so far: 7 epochs on 10 of 20
    classes, results/table2_excerpt.csv; 2 minutes an epoch on one core.

Choices where the paper is silent: standardised by the mean and standard deviation of
each colour channel over the chosen classes' training images; the last partial batch is
kept (`drop_last` leaves it out).
"""

from keras_fa.config import default_config


def get_config():
    config = default_config()
    config.dataset.name = "tiny_imagenet"
    config.dataset.num_classes = 10
    config.dataset.class_seed = 0
    config.dataset.standardize = "channel"
    config.model.name = "resnet18"
    config.optimizer.learning_rate = 0.01
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 1e-4
    config.schedule.boundaries = (20, 40)
    config.schedule.factors = (0.5, 0.25)
    config.epochs = 50
    config.batch_size = 512
    return config
