"""Words of other programs and libraries, and what dlrun calls them (`dlrun train lr=0.1`, `dlrun fit`).

Keys here are folded: lower case, `-` as `_` (`fold`); options without any sign between letters (`squeezed`). A setting
without `=` takes the value that was typed; with `=` it is complete, and a pair holds one for true and one for false.
"""

from __future__ import annotations

__all__ = ["GROUPS", "KEYS", "OPTIONS", "UNNEEDED", "VALUES", "VERBS", "fold", "squeezed"]


def fold(word: str) -> str:
    """Return a key in lower case, with underscores."""
    return word.strip().lower().replace("-", "_").replace(" ", "_")


def squeezed(word: str) -> str:
    """Return the letters and digits of an option's name, in lower case, without what torch appends to its classes."""
    found = "".join(letter for letter in word.lower() if letter.isalnum())
    for ending in ("optimizer", "scheduler", "loss", "sampler", "lr"):
        found = found.removesuffix(ending) or found
    return found


def _table(lines: str) -> dict[str, str]:
    """Words on the left of each line, what they mean on the right."""
    found: dict[str, str] = {}
    for line in filter(str.strip, lines.splitlines()):
        words, _, meaning = line.partition("->")
        found |= dict.fromkeys(words.split(), meaning.strip())
    return found


# commands to type, several apart by a comma
VERBS = _table("""
    fit run start training learn            -> dlrun train
    sweep search tune hparams optimize grid multirun hyperparameters -> dlrun train -m optimizer.lr=0.1,0.01
    ls dir runs history status jobs         -> dlrun list, dlrun compare
    lr_find lr_finder find_lr lr_range_test range_test -> dlrun lr_range
    find_batch batch_size batch_finder auto_batch scale_batch_size -> dlrun batch_time
    delete remove del erase clean           -> dlrun rm
    difference differences                  -> dlrun diff
    continue restart                        -> dlrun resume
    infer inference classify label apply    -> dlrun predict
    vote bag bagging stack                  -> dlrun ensemble
    save onnx deploy convert torchscript    -> dlrun export
    plot plots page html                    -> dlrun report
    table leaderboard results summary summarize -> dlrun compare
    visualize view images preview           -> dlrun show augment
    doc docs describe info options keys     -> dlrun explain
    lint sanity sanity_check dry_run        -> dlrun check
    dashboard ui tensorboard                -> dlrun board
    new create setup scaffold               -> dlrun init
    version                                 -> dlrun --version
""")

GROUPS = _table("""
    arch architecture net network backbone model_name model.name model.type model.arch -> model
    opt optim optimizer_name optimizer.name optimizer.type optimizer.optimizer optimiser -> optimizer
    sched lr_scheduler lr_schedule schedule scheduler_name scheduler.name scheduler.type -> scheduler
    criterion loss_fn loss_function loss.name loss.type objective.loss -> loss
    reg regularization regularisation regulariser regularizer.name regularizer.type -> regularizer
    ds data dataset_name dataset.name dataset.type datamodule -> dataset
    aug transform transforms augmentation augmentations data_augmentation dataset.transform dataset.augment -> augment
    preset recipe experiment.name -> experiment
    sampler search.name search.method search.type search.algorithm -> search
    loggers logging log_to trainer.logger -> logger
    checks -> check
    launcher hydra.launcher -> hydra/launcher
""")

# what a key of another name is called here; several candidates apart by a comma, the first that exists counts
KEYS = _table("""
    lr learning_rate learningrate lrate base_lr init_lr initial_lr max_lr step_size alpha_lr eta -> optimizer.lr
    epochs epoch num_epochs n_epochs max_epochs max_epoch nepochs total_epochs train_epochs -> trainer.epochs
    batch_size batchsize batch bs minibatch mini_batch train_batch_size -> trainer.batch_size
    eval_batch_size test_batch_size val_batch_size -> trainer.eval_batch_size
    start_from startfrom init_from finetune_from load_weights load_from pretrained_weights -> trainer.start_from
    device accelerator -> trainer.device
    gpu gpus cuda use_cuda use_gpu -> trainer.device=cuda | trainer.device=cpu
    no_cuda cpu use_cpu -> trainer.device=cpu | trainer.device=auto
    fp16 half -> trainer.precision=fp16 | trainer.precision=fp32
    amp mixed_precision bf16 use_amp autocast -> trainer.precision=bf16 | trainer.precision=fp32
    precision dtype -> trainer.precision
    mixup mixup_alpha mix_up augment.mixup -> objective.mixup
    weight_decay wd decay -> optimizer.weight_decay
    momentum -> optimizer.momentum
    beta betas -> optimizer.betas
    eps epsilon -> optimizer.eps
    dropout drop_rate p_dropout dropout_rate drop -> regularizer.dropout
    label_smoothing smoothing -> regularizer.label_smoothing
    l1 l1_lambda l1_reg -> regularizer.l1
    l2 l2_lambda l2_reg -> regularizer.l2
    max_norm maxnorm -> regularizer.max_norm
    random_seed manual_seed rng random_state torch_seed seed_everything -> seed
    patience early_stopping_patience -> trainer.patience
    early_stopping early_stop earlystopping -> trainer.patience=5 | trainer.patience=0
    clip grad_clip gradient_clip_val clip_grad clip_grad_norm max_grad_norm gradient_clip -> trainer.clip_norm
    ema ema_decay use_ema -> trainer.ema
    width hidden hidden_size hidden_dim channels base_channels num_filters filters units n_hidden -> model.width
    depth num_layers n_layers layers nlayers -> model.depth
    activation act act_fn nonlinearity activation_fn -> model.activation
    norm batch_norm batchnorm use_bn normalization -> model.norm
    kernel kernel_size filter_size ksize -> model.kernel_size
    pretrained -> model.weights=true | model.weights=null
    target class _target -> model._target_
    root path folder data_dir data_path data_root dataset_path dataset_dir dir train_dir -> dataset.root, dataset.path
    file npz -> dataset.path, dataset.root
    image_size img_size imgsz size resolution input_size resize -> dataset.image_size
    val_fraction val_split val_size validation_split val_ratio valid_fraction -> dataset.val_fraction
    test_fraction test_split test_size test_ratio -> dataset.test_fraction
    limit subset max_samples num_samples n_samples train_size limit_train_batches max_images -> dataset.limit
    balance balanced oversample weighted_sampler -> dataset.balance
    class_weights class_weight pos_weight weighted weights -> loss.weight=balanced
    gamma focal_gamma -> loss.gamma
    output_dir out out_dir outdir log_dir save_dir workdir output output_path results_dir logdir -> run.dir
    name run_name experiment_name exp_name -> run.name
    tag tags -> run.tags
    note notes description comment -> run.note
    trials n_trials num_trials n_iter max_trials samples -> search.trials
    timeout -> search.timeout
    metric -> search.metric
    direction mode -> search.direction
    monitor -> trainer.monitor
    max_time stop_after stop -> trainer.stop_after
    keep save_top_k save_best checkpointing save_best_only save_checkpoints -> trainer.keep
    warmup warmup_epochs num_warmup_epochs warm_up -> scheduler.warmup
    warmup_steps num_warmup_steps -> scheduler.warmup_steps, scheduler.warmup
    hours max_hours time_limit -> trainer.hours
    lookahead_steps -> optimizer.lookahead
    gradient_checkpointing grad_checkpointing -> model.checkpointing=true | model.checkpointing=false
    rho sam_rho -> optimizer.sam
    swa_fraction -> trainer.swa
    drop_path drop_path_rate stochastic_depth_prob -> model.stochastic_depth
    gamma -> scheduler.gamma, scheduler.factor
    t_max tmax -> scheduler.epochs, trainer.epochs
    nesterov -> optimizer=nesterov | optimizer=sgd
    teacher -> objective.teacher
    unlabelled unlabeled unlabeled_dir unlabelled_dir objective.unlabeled -> objective.unlabelled
    threshold tau p_cutoff confidence_threshold -> objective.threshold, scheduler.threshold
    temperature alpha -> objective.temperature, objective.alpha
    compile torch_compile jit -> trainer.compile
    threads num_threads cpus cores -> trainer.threads
    accumulate accum grad_accum accumulate_grad_batches gradient_accumulation_steps -> trainer.accumulate
    deterministic reproducible -> trainer.deterministic
    tensorboard use_tensorboard tb -> logger=tensorboard | logger=none
    mlflow -> logger=mlflow | logger=none
    freeze_bias bias_decay -> trainer.weight_decay_biases
    tta test_time_augmentation -> trainer.multi_crop=mirror | trainer.multi_crop=none
    flip hflip horizontal_flip random_flip -> augment.flip
    vflip vertical_flip random_vertical_flip -> augment.flip_vertical
    crop_size train_crop_size random_resized_crop rrc resized_crop -> augment.crop
    val_crop val_crop_size eval_size test_size_pixels crop_pct -> augment.eval_crop
    rotate rotation degrees -> augment.rotate
    cutout -> augment.cutout
    random_erasing random_erase reprob erasing -> augment.erase
    trivial_augment trivial_augment_wide -> augment.trivialaugment
    repeated_aug repeated_augmentation ra_reps aug_repeats -> augment.repeats
    cache -> dataset.cache
    num_gpus n_gpus num_devices nproc_per_node world_size nproc num_processes -> trainer.devices
    fsdp use_fsdp fully_shard shard_weights zero_optimizer -> trainer.sharding=fsdp2 | trainer.sharding=none
    n_jobs jobs njobs parallel max_workers -> hydra.launcher.workers
    init weight_init initialization -> model.init
""")

# what needs no key, and why
UNNEEDED = _table(
    """
    workers -> not needed to load images; a sweep starts one worker per core, or hydra.launcher.workers=N with -m
    num_workers dataloader_workers pin_memory prefetch_factor persistent_workers non_blocking prefetch
        -> not needed: dlrun decodes images once and keeps them in memory, without loader processes; omit it
    shuffle drop_last -> not needed: training images are shuffled in every epoch, from the seed; omit it
    verbose debug -> not needed: everything is printed and in log.txt; the flag --debug shows the traceback of an error
    num_classes n_classes in_channels n_channels
        -> not needed: dlrun reads it from the dataset and passes it to the model; omit it
    resume checkpoint ckpt ckpt_path resume_from resume_from_checkpoint load
        -> not a key: type dlrun resume RUN to continue a run, dlrun train --from RUN to repeat it with changes
    dry_run sanity fast_dev_run -> not a key: type dlrun check for the checks alone, or experiment=quick for a short run
    wandb use_wandb -> not a logger of dlrun: type logger=tensorboard or logger=mlflow
    save_path model_path -> not needed: the run's folder has checkpoints/best.pt; run.dir=FOLDER names the folder
    normalize normalise mean std -> not needed: images are normalised with the mean and std of the training split
    cutmix cutmix_alpha cut_mix augment.cutmix -> objective.cutmix
    distributed ddp local_rank strategy num_nodes nodes -> not a key: type trainer.devices=2, or start with torchrun
""".replace("\n        ->", " ->")
)

# values of a key, folded; true and false are themselves
VALUES: dict[str, dict[str, str]] = {
    "trainer.device": _table("""
        gpu nvidia true yes -> cuda
        0 gpu0 gpu:0 cuda0 -> cuda:0
        1 gpu1 gpu:1 cuda1 -> cuda:1
        apple metal m1 m2 m3 -> mps
        processor false none no -> cpu
    """),
    "trainer.precision": _table("""
        bfloat16 bf16_mixed mixed amp true -> bf16
        16 half float16 16_mixed -> fp16
        32 float32 single full float false none 32_true -> fp32
    """),
    "trainer.keep": _table("""
        true yes best_only 1 -> best
        2 3 4 5 10 top_3 top top2 top5 top10 -> top3
        false none no -> last
        every -> all
    """),
    "trainer.monitor": _table("""
        acc accuracy val_accuracy valid_acc val/acc -> val_acc
        loss valid_loss val/loss -> val_loss
        train_accuracy -> train_acc
        balanced_accuracy balanced_acc bacc val_balanced_accuracy uar -> val_balanced_acc
        f1 macro_f1 f1_macro val_f1 f1_score val_f1_macro -> val_macro_f1
        kappa cohen_kappa qwk -> val_kappa
    """),
    "trainer.multi_crop": _table("""
        flip hflip true tta -> mirror
        false no -> none
    """),
    "search.metric": _table("""
        acc accuracy val_accuracy valid_acc -> val_acc
        loss valid_loss -> val_loss
        balanced_accuracy balanced_acc bacc val_balanced_accuracy uar -> val_balanced_acc
        f1 macro_f1 f1_macro val_f1 f1_score val_f1_macro -> val_macro_f1
        kappa cohen_kappa qwk -> val_kappa
        auc roc_auc auroc rocauc val_auroc val_roc_auc -> val_auc
        mcc matthews matthews_corrcoef -> val_mcc
        top5 top5_acc top5_accuracy -> val_top5_acc
        ece calibration_error -> val_ece
    """),
    "search.direction": _table("""
        maximize maximise maximum up -> max
        minimize minimise minimum down -> min
    """),
    "search.prune": _table("""
        asha halving successive_halving true -> hyperband
        false no -> none
    """),
    "model.activation": _table("""
        swish -> silu
        lrelu leakyrelu leaky -> leaky_relu
        logistic -> sigmoid
    """),
    "model.norm": _table("""
        bn batchnorm batch_norm batchnorm2d true -> batch
        ln layernorm layer_norm -> layer
        gn groupnorm group_norm -> group
        false no off null -> none
    """),
    "model.init": _table("""
        he kaiming kaiming_normal kaiming_uniform -> he_normal
        xavier xavier_uniform glorot -> glorot_uniform
        gaussian -> normal
    """),
    "model.pool": _table(
        "maxpool max_pool -> max\n avgpool average mean avg_pool -> avg\n strided conv -> stride\n false no -> none"
    ),
    "dataset.on_bad": _table("skip ignore remove -> drop\n raise fail stop -> error"),
    "dataset.layout": _table("channels_last hwc nhwc -> NHWC\n channels_first chw nchw -> NCHW"),
}

# options of a group, squeezed
OPTIONS: dict[str, dict[str, str]] = {
    "model": _table("""
        resnet residual -> resnet18
        convnet conv convolutional simplecnn lenet lenet5 alexnet -> cnn
        fc dense linear logistic perceptron fullyconnected multilayerperceptron feedforward ffn -> mlp
        own my mine mynet mymodel -> custom
        resnet101 resnet152 resnext50 -> resnet50
        resnet110 -> resnet56
        vgg vgg16 vgg19 vgg11 densenet densenet121 efficientnet mobilenet vit pretrained -> torchvision
    """),
    "optimizer": _table("""
        momentum sgdm sgdmomentum sgdwithmomentum -> sgd
        nag nesterovmomentum sgdnesterov -> nesterov
        rms -> rmsprop
        bfgs -> lbfgs
        adabelief -> adamw
        nadam adamax -> adam
    """),
    "scheduler": _table("""
        none no off fixed flat null false -> constant
        cosineannealing cosinedecay cos -> cosine
        1cycle cycle cyclic super -> one_cycle
        multistep milestones -> multi_step
        reduceonplateau reducelronplateau reduce -> plateau
        sgdr cosinerestarts cosineannealingwarmrestarts restarts -> warm_restarts
        exp exponentialdecay -> exponential
        poly polynomial lineardecay -> linear
        steps stepdecay -> step
        noam rsqrt -> inverse_sqrt
    """),
    "dataset": _table("""
        cifar -> cifar10
        folder images photos imagenet custom own mine files directory pictures -> image_folder
        npz numpy npy array tensor -> arrays
        csv tsv parquet dataframe spreadsheet excel kaggle labels -> table
        webdataset wds tar tars -> shards
        hf hub datasets -> huggingface
        fashion fmnist -> fashion_mnist
        kuzushiji -> kmnist
        sklearn toy -> digits
    """),
    "loss": _table("""
        ce xent nll softmax log logistic categoricalcrossentropy mse -> cross_entropy
        svm multimargin margin -> hinge
    """),
    "regularizer": _table("""
        weightdecay wd ridge -> l2
        lasso -> l1
        elasticnet -> elastic
        smoothing -> label_smoothing
        off no false null -> none
    """),
    "augment": _table("""
        crop flip standard default hflip randomcrop cifar -> crop_flip
        autoaugment auto rand -> randaugment
        trivial trivialaugmentwide -> trivialaugment
        heavy hard -> strong
        color jitter colorjitter -> colour
        erasing randomerasing -> cutout
        rotate rotation shift translate -> affine
        gaussianblur -> blur
        gaussiannoise -> noise
        off no false null -> none
        true yes on -> crop_flip
    """),
    "search": _table("""
        bayes bayesian optuna gp -> tpe
        halving asha hyperband successivehalving bohb -> staged
        rand uniform -> random
        quasirandom halton qmc -> sobol
        jitter -> grid_jitter
    """),
    "check": _table("""
        off no false skip disable null 0 -> none
        true on all yes 1 -> default
    """),
    "objective": _table(
        "kd distillation distil teacher -> distill\n fgsm pgd attack robust adv -> adversarial\n"
        " pseudo pseudolabels selftraining noisystudent -> pseudo_label\n uda -> fixmatch\n"
        " ae -> autoencode\n dae -> denoise\n rotnet -> rotation\n contrastive ssl selfsupervised -> simclr\n"
        " classification default standard -> supervised"
    ),
    "logger": _table("""
        tb board wandb -> tensorboard
        off no false null csv -> none
    """),
    "experiment": _table("small short debug test smoke -> quick\n airbench speedrun cifar10 -> cifar10_speedrun"),
    "hydra/launcher": _table("local basic multiprocessing -> pool\n slurm submitit -> submitit_slurm"),
}
