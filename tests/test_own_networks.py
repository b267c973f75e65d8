"""Networks of one's own by name, and saved classifiers as the start of others."""
import json, re

import pytest, torch
from refused import refused
from torch import nn

from tsynd.cli import main
from tsynd.core import seeded
from tsynd.data import phantom
from tsynd.deployment import load_bundle, make_bundle, save_bundle
from tsynd.experiments import check_config, check_machine, read_config, resolve, RunConfig, StudyConfig
from tsynd.models import (
    Autoencoder, Classifier, load_classifier, make_classifier, mc_logits, network, NETWORKS, predict,
    save_model, train_classifier)
from tsynd.targeting import TSynD


class Steps(nn.Module):
    "Normalises by itself; asks for a number while it is built, as networks with stochastic depth do"
    def __init__(self, ch, n_classes, p):
        super().__init__()
        self.width = 8 + int(torch.linspace(0, 1, 3)[-1].item())
        self.body = nn.Sequential(nn.Conv2d(ch, self.width, 3, 2), nn.BatchNorm2d(self.width), nn.ReLU(),
                                  nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.drop,self.head = nn.Dropout(p),nn.Linear(4*self.width, n_classes)
    def forward(self, x): return self.head(self.drop(self.body(2*x-1)))

def holds_config(ch, n_classes, p):
    net = nn.Flatten(); net.config = object()
    return net

def of_other_layers(ch, n_classes, p):
    return nn.Sequential(nn.Flatten(), nn.Linear(144*ch, n_classes), *[nn.Dropout(p)]*n_classes,
                         nn.Linear(n_classes, n_classes))

def fails(ch, n_classes, p): return nn.Linear(ch, 'many')

OWN = dict(steps=Steps, of_other_layers=of_other_layers, fails=fails, holds_config=holds_config,
           list=lambda *a: [1], ten=lambda ch, C, p: nn.Sequential(nn.Flatten(), nn.Linear(144*ch, 10)),
           lazy=lambda ch, C, p: nn.Sequential(nn.Flatten(), nn.Dropout(p), nn.LazyLinear(C)),
           one_layer=lambda ch, C, p: Classifier(nn.Flatten(), 144*ch, C, p))

def differ(a, b):
    a, b = a.state_dict(), b.state_dict()
    assert a.keys() == b.keys()
    return [k for k in a if a[k].shape != b[k].shape or not torch.equal(a[k], b[k])]

@pytest.fixture(autouse=True)
def known():
    before = dict(NETWORKS)
    for name, make in OWN.items(): assert network(name)(make) is make
    yield
    NETWORKS.clear(); NETWORKS.update(before)

@pytest.fixture(scope='module')
def data(): return phantom(24, 12, 12, size=12)

@pytest.fixture(scope='module')
def colour(tmp_path_factory):
    "A trained classifier of colour images with five outputs, saved"
    with seeded(1): net = make_classifier('small_resnet', 3, 5, p=.25, size=(12,12), mean=[.1]*3, std=[.2]*3)
    net(torch.rand(8, 3, 12, 12))                       # moves the running statistics
    path = tmp_path_factory.mktemp('colour')/'clf'
    save_model(path, net)
    return net, path


# By name

def test_a_network_of_ones_own_is_trained_measured_saved_and_loaded_as_ours(data, tmp_path):
    with seeded(0): ae = Autoencoder(width=4).eval()
    net = train_classifier(data, 'steps', epochs=2, p=.3, bs=8, cbs=TSynD(ae, gate=0., every=1)).model
    assert type(net) is Steps and net.drop.p == .3
    assert net.config == dict(model='steps', ch=1, n_classes=2, p=.3, size=[12, 12])
    assert mc_logits(net, data.test.x, T=4).std(0).min() > 0
    with refused('images', '(1, 16, 16)'): predict(net, torch.rand(2, 1, 16, 16))
    made = make_bundle(net, None, data)
    again = load_bundle(save_bundle(made, tmp_path/'bundle'))
    assert type(again.classifier) is Steps and again.facts['model'] == 'steps'
    assert torch.equal(predict(again.classifier, data.test.x), predict(net, data.test.x))

def test_a_seed_gives_the_same_start_by_name_as_by_hand(data):
    with seeded(4): by_hand = Steps(1, 2, .5)
    with seeded(4): by_name = make_classifier('steps')
    assert differ(by_name, by_hand) == []

def test_who_has_not_imported_it_is_told_to(tmp_path):
    save_model(tmp_path/'c', make_classifier('steps'))
    del NETWORKS['steps']
    with refused('model', 'import', tmp_path.name, found='steps'): load_classifier(tmp_path/'c')
    with refused('model', 'one_layer', 'resnet18', 'timm:NAME', found='steps'): make_classifier('steps')

@pytest.mark.parametrize('name, words', [
    ('list', 'type list'), ('lazy', '2'), ('holds_config', 'config'), ('fails', 'TypeError')])
def test_what_cannot_be_trained_and_built_again_is_refused(name, words):
    with refused('model', name, words): make_classifier(name)

def test_another_number_of_logits_is_noticed_before_the_training(data):
    with refused('model', 'ten', 'expected 2', found=10): train_classifier(data, 'ten', epochs=1)

def test_names_are_no_paths():
    for name in ('a/b', '..', 5, 'a\nb'):
        with refused('name'): network(name)

def test_pixels_are_normalised_by_a_classifier_of_ours_alone():
    x, net = torch.rand(3, 1, 12, 12), make_classifier('one_layer', mean=[.2], std=[.4]).eval()
    assert torch.allclose(net(x), net.out(((x-.2)/.4).flatten(1)), atol=1e-5)
    with refused('mean', 'Classifier'): make_classifier('steps', mean=[.2], std=[.4])


# As a saved one

def test_weights_are_those_that_were_saved_and_the_head_is_new_where_the_outputs_differ(colour):
    net, path = colour
    assert differ(make_classifier(path), net) == []
    begun = make_classifier(path, n_classes=7, p=.4)
    assert differ(begun, net) == ['out.weight', 'out.bias'] and begun.out.weight.shape == (7, 96)
    assert begun.config == net.config | dict(n_classes=7, p=.4) and begun.training and begun.drop.p == .4
    x = torch.rand(2, 3, 12, 12)
    features = net.eval().trunk((x-.1)/.2)
    torch.testing.assert_close(begun.eval()(x), begun.out(features))
    with seeded(3): one = make_classifier(path, n_classes=7)
    with seeded(3): two = make_classifier(path, n_classes=7)
    assert differ(one, two) == []

def test_a_bundle_is_found_by_its_folder_and_needed_no_longer(data, tmp_path, monkeypatch):
    net = train_classifier(data, 'steps', epochs=1, bs=8).model
    folder = save_bundle(make_bundle(net, None, data), tmp_path/'bundle')
    for path in (folder, str(folder), folder.parent, folder/'classifier', folder/'classifier.safetensors'):
        assert differ(make_classifier(path), net) == [], path
    monkeypatch.chdir(folder.parent)
    again = train_classifier(data, 'bundle', epochs=1, lr=1e-6, bs=8, p=.5).model
    assert again.config == net.config and differ(again, net)
    torch.testing.assert_close(again.head.weight, net.head.weight, atol=1e-3, rtol=0)

def test_images_that_do_not_fit_are_refused(colour, data):
    path, other = str(colour[1]), phantom(16, 8, 8, size=16)
    with refused('ch', '3', found=1): make_classifier(path, ch=1)
    with refused('size', '[12, 12]'): make_classifier(path, size=(16, 16))
    with refused('ch', path): train_classifier(data, path)
    with refused('ch', path): resolve(RunConfig(size=12, model=path), data)
    grey = colour[1].with_name('grey')
    save_model(grey, make_classifier(size=(12, 12)))
    with refused('images', '(1, 12, 12)', found=(1, 16, 16)): train_classifier(other, grey, epochs=1)
    with refused('model', '(1, 12, 12)'): resolve(RunConfig(size=16, model=str(grey)), other)
    assert resolve(RunConfig(size=12, model=str(grey)), data).model == str(grey)

def test_an_architecture_that_is_another_for_other_outputs_is_refused(tmp_path):
    save_model(tmp_path/'c', make_classifier('of_other_layers', n_classes=3))
    assert make_classifier(tmp_path/'c').config['n_classes'] == 3
    with refused('model', 'n_classes=2', '.weight'): make_classifier(tmp_path/'c', n_classes=2)

@pytest.mark.parametrize('where', ['none/there', './c.json', '/', '~/none/there'])
def test_a_path_without_a_classifier_is_refused(where, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with refused('model', 'bundle'): make_classifier(where)

def test_an_autoencoder_and_other_weights_are_refused(colour, tmp_path):
    save_model(tmp_path/'ae', Autoencoder(width=4))
    with refused(tmp_path/'ae', 'Autoencoder'): make_classifier(tmp_path/'ae')
    with refused('pretrained', 'timm', str(colour[1])): make_classifier(colour[1], pretrained=True)

def test_a_file_cannot_name_another_file_as_its_network(colour, tmp_path):
    save_model(tmp_path/'c', make_classifier())
    facts = json.loads((tmp_path/'c.json').read_text())
    for path in (tmp_path/'c', colour[1]):
        facts['config']['model'] = str(path)
        (tmp_path/'c.json').write_text(json.dumps(facts))
        with refused('model', found=path): load_classifier(tmp_path/'c')


# In runs and studies

def test_a_study_names_all_of_them(colour, tmp_path):
    c = StudyConfig('s', ['phantom'], [20], 1, dict(baseline={}))
    for model in ('steps', str(colour[1]), 'one_layer', 'timm:resnet10t'):
        (tmp_path/'s.toml').write_text(f'name = "s"\ndatasets = ["phantom"]\nn = [20]\nseeds = 1\n'
                                       f'model = "{model}"\npretrained = false\n[arms.baseline]\n')
        read = read_config(tmp_path/'s.toml')
        assert (read.model, read.pretrained) == (model, False)
        check_machine(read)
    c.model = 'no_such'
    with refused('model', 'steps', found='no_such'): check_machine(check_config(c))

def test_true_is_the_weights_of_timm(tmp_path, monkeypatch, data):
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', str(tmp_path))
    for true in (True, 'timm'):
        with refused('pretrained', "timm's weights of timm:resnet10t", found='timm'):
            make_classifier('timm:resnet10t', pretrained=true)
    asked = []
    def made(*args, pretrained=None, **kw): asked.append(pretrained); return make_classifier('steps')
    monkeypatch.setattr('tsynd.experiments.experiment.make_classifier', made)
    told = [resolve(RunConfig(size=12, pretrained=v), data).pretrained for v in (True, False, None, 'x.pth')]
    assert told == ['timm', None, None, 'x.pth'] and asked == [True, False, None, 'x.pth']
    for wrong in (5, ['timm'], {}, 'a\0b', 'x'*5000):
        with refused('pretrained', 'true or false'): resolve(RunConfig(pretrained=wrong), data)

def test_the_command_begins_with_a_bundle(colour, tmp_path, capsys):
    save_model(tmp_path/'grey', make_classifier(size=(12, 12)))
    asked = ['train', 'phantom', '--size', '12', '--quick', '--arm', 'baseline', '--lr', '1e-6', '--model']
    assert main([*asked, str(tmp_path/'grey'), '--out', str(tmp_path/'out')]) == 0
    saved, begun = load_classifier(tmp_path/'grey'), load_bundle(tmp_path/'out'/'bundle').classifier
    torch.testing.assert_close(begun.out.weight, saved.out.weight, atol=1e-3, rtol=0)
    capsys.readouterr()
    assert main([*asked, str(colour[1]), '--out', str(tmp_path/'two')]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and re.search('ch is 1, but .* is for 3', said[0])
