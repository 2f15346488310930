"""Where models come from: names, and what stands behind them.

======================================== =================================================================
``digits-cnn``, ``-foundation``          networks for 32 x 32 grey digits; weights come with this package
``digits-vit``, ``-foundation``          Vision Transformers for the same; weights come with this package
``efficientnet-lite0``, ``1``, ``2``     ImageNet; weights come with the extra ``efficientnet``
``cifar-resnet20``, ``56``               CIFAR-10; need a weights file
``timm:NAME``                            PyTorch Image Models
``torchvision:NAME``                     torchvision's classifiers
``hf:NAME_OR_FOLDER``                    transformers' image classifiers, from safetensors
``package.module:function``              a function of one's own
======================================== =================================================================
"""
