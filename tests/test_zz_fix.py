import json, torch
from nnunet_kd.checkpoints import load_checkpoint
def test_a(tiny_teacher, tiny_dataset):
    ck=tiny_teacher/'fold_0/checkpoint_final.pth'
    print(torch.serialization.get_unsafe_globals_in_checkpoint(ck))
    c=load_checkpoint(ck); print({k:type(v) for k,v in c.items()}, c['init_args'].keys(), c['logging'], c['inference_allowed_mirroring_axes'])
    print(sorted(tiny_teacher.rglob('*')))
    print(json.loads(tiny_dataset.plans_file.read_text()))
def test_3d(make_dataset, train):
    d=make_dataset(951,'Tiny3', dims=3, foreground=2, regions=True, ignore=True, channels=2)
    print(d); train(d)
def test_2(make_dataset, train):
    d=make_dataset(952,'Tiny4', foreground=2, ignore=True); train(d)
